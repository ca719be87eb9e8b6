"""A WHIP publisher or WHEP viewer made of GStreamer's webrtcbin. Runs under the system's Python, where the packaged bindings are.

    gstreamer_client.py publish|watch URL TOKEN CODEC FRAMES     CODEC is VP8, VP9 or H264

A publisher stays until its standard input ends, a viewer until it has decoded FRAMES frames and as many sounds, but half a minute at
most. Prints one JSON object: what webrtcbin counted, and what was decoded."""

import json
import sys
import urllib.parse
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstSdp", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

ENCODERS = {
    "VP8": "vp8enc deadline=1 keyframe-max-dist=50 ! rtpvp8pay pt=96 picture-id-mode=15-bit",
    "VP9": "vp9enc deadline=1 cpu-used=8 keyframe-max-dist=50 ! rtpvp9pay pt=96 picture-id-mode=15-bit",
    "H264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=50 ! video/x-h264,profile=constrained-baseline "
    "! rtph264pay pt=96 config-interval=-1 aggregate-mode=zero-latency",
}

# A publisher that nobody stops, and a viewer that gets nothing, end by themselves.
STAY_S_MAX = 30

PUBLISH = (
    "videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=25/1 ! {encoder} "
    "! application/x-rtp,media=video,encoding-name={codec},payload=96 ! webrtc. "
    "audiotestsrc is-live=true ! audio/x-raw,rate=48000,channels=2 ! opusenc ! rtpopuspay pt=97 "
    "! application/x-rtp,media=audio,encoding-name=OPUS,payload=97 ! webrtc. "
    "webrtcbin name=webrtc bundle-policy=max-bundle"
)


class Client:
    def __init__(self, role, url, token, codec, frames):
        self.url, self.token, self.frames = url, token, frames
        self.watches = role == "watch"
        self.loop = GLib.MainLoop()
        self.resource = None
        self.failure = None
        self.decoded = {"video": 0, "audio": 0}
        self.sizes = set()
        if not self.watches:
            self.pipeline = Gst.parse_launch(PUBLISH.format(encoder=ENCODERS[codec], codec=codec))
            self.webrtc = self.pipeline.get_by_name("webrtc")
        else:
            self.pipeline = Gst.Pipeline()
            self.webrtc = Gst.ElementFactory.make("webrtcbin", "webrtc")
            self.webrtc.set_property("bundle-policy", "max-bundle")
            self.pipeline.add(self.webrtc)
            self.webrtc.connect("pad-added", self.on_pad)
        self.pipeline.get_bus().add_signal_watch()
        self.pipeline.get_bus().connect("message::error", self.on_error)
        if self.watches:
            self.pipeline.set_state(Gst.State.READY)
            for media, name, clock, pt in (("video", codec, 90000, 96), ("audio", "OPUS", 48000, 97)):
                caps = f"application/x-rtp,media={media},encoding-name={name},clock-rate={clock},payload={pt}"
                caps += ",encoding-params=(string)2" if media == "audio" else ",packetization-mode=(string)1" if name == "H264" else ""
                self.webrtc.emit("add-transceiver", GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY, Gst.Caps.from_string(caps))
        else:
            self.webrtc.connect("on-negotiation-needed", self.on_negotiation)

    def run(self):
        self.pipeline.set_state(Gst.State.PLAYING)
        if self.watches:
            # Not when webrtcbin asks for it, which is after the first of two sections.
            self.on_negotiation(self.webrtc)
        GLib.timeout_add_seconds(STAY_S_MAX, self.loop.quit)
        GLib.io_add_watch(sys.stdin, GLib.PRIORITY_DEFAULT, GLib.IOCondition.HUP, lambda *_: self.loop.quit())
        self.loop.run()
        report = {"decoded": self.decoded, "sizes": sorted(self.sizes), "stats": self.stats(), "failure": self.failure}
        if self.resource:
            urllib.request.urlopen(urllib.request.Request(self.resource, method="DELETE"), timeout=5).close()
        self.pipeline.set_state(Gst.State.NULL)
        return report

    def on_error(self, _bus, message):
        error, detail = message.parse_error()
        self.failure = f"{error}: {detail}"
        self.loop.quit()

    def on_negotiation(self, _element):
        self.webrtc.emit("create-offer", None, Gst.Promise.new_with_change_func(self.on_offer))

    def on_offer(self, promise):
        # The offer lives in the reply, and the bindings do not keep that.
        self.reply = promise.get_reply()
        offer = self.reply.get_value("offer")
        self.webrtc.emit("set-local-description", offer, Gst.Promise.new())
        try:
            # No candidates: the node is ICE-lite and learns our address from our checks.
            headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {self.token}"}
            request = urllib.request.Request(self.url, offer.sdp.as_text().encode(), headers, method="POST")
            with urllib.request.urlopen(request, timeout=5) as answer:
                self.resource = urllib.parse.urljoin(self.url, answer.headers["Location"])
                text = answer.read().decode()
        except OSError as error:
            body = error.read().decode() if hasattr(error, "read") else ""
            self.failure = f"{error} {body}\n{offer.sdp.as_text()}"
            self.loop.quit()
            return
        _, sdp = GstSdp.SDPMessage.new_from_text(text)
        answer = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, sdp)
        self.webrtc.emit("set-remote-description", answer, Gst.Promise.new())

    def on_pad(self, _element, pad):
        if pad.get_direction() != Gst.PadDirection.SRC:
            return
        decode = Gst.ElementFactory.make("decodebin")
        decode.connect("pad-added", self.on_decoded)
        self.pipeline.add(decode)
        decode.sync_state_with_parent()
        pad.link(decode.get_static_pad("sink"))

    def on_decoded(self, _element, pad):
        kind = pad.get_current_caps().get_structure(0).get_name().split("/")[0]
        sink = Gst.ElementFactory.make("fakesink")
        sink.set_property("signal-handoffs", True)
        sink.connect("handoff", self.on_buffer, kind)
        self.pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    def on_buffer(self, _sink, _buffer, pad, kind):
        self.decoded[kind] += 1
        if kind == "video":
            caps = pad.get_current_caps().get_structure(0)
            self.sizes.add(f"{caps.get_value('width')}x{caps.get_value('height')}")
        if min(self.decoded.values()) >= self.frames:
            self.loop.quit()

    def stats(self):
        """Packets and bytes that webrtcbin counts for its RTP streams, by type of stream."""
        promise = Gst.Promise.new()
        self.webrtc.emit("get-stats", None, promise)
        promise.wait()
        totals = {}

        def visit(_field, value):
            if isinstance(value, Gst.Structure) and value.has_field("type"):
                for name in ("packets-sent", "packets-received", "packets-lost", "nack-count", "pli-count"):
                    if value.has_field(name):
                        key = f"{value.get_name().rsplit('_', 1)[0]} {name}"
                        totals[key] = totals.get(key, 0) + value.get_value(name)
            return True

        reply = promise.get_reply()
        for index in range(reply.n_fields()):
            name = reply.nth_field_name(index)
            visit(name, reply.get_value(name))
        return totals


def main():
    role, url, token, codec, frames = sys.argv[1:]
    Gst.init(None)
    print(json.dumps(Client(role, url, token, codec, int(frames)).run()))


if __name__ == "__main__":
    main()
