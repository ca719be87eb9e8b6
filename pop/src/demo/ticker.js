// The test pattern's clock. It runs in a worker because a browser slows timers of a page that is in the background to one
// a second, and the picture has to go on while its viewers are looked at in another tab.
//
// The page answers each tick when it has drawn. Until then no other comes: on a busy machine ticks would queue up before everything
// else that the page has to do.
let drawn = true;

onmessage = (event) => {
  if (event.data === "drawn") drawn = true;
  else setInterval(tick, 1000 / event.data);
};

function tick() {
  if (!drawn) return;
  drawn = false;
  postMessage(0);
}
