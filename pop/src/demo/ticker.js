// The test pattern's clock. It runs in a worker because a browser slows timers of a page that is in the background to one
// a second, and the picture has to go on while its viewers are looked at in another tab.
onmessage = (event) => {
  setInterval(() => postMessage(0), 1000 / event.data);
};
