"""Decodes VP8 of one SRTP stream with GStreamer's srtpdec. Arguments: port, key in hexadecimal, cipher, frames.

A file of its own for the system's Python: srtpdec asks for the key of an SSRC by a signal, which gst-launch cannot answer.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

port, key, cipher, frames = sys.argv[1:]
Gst.init(None)
caps = "application/x-srtp,media=video,encoding-name=VP8,payload=96,clock-rate=90000"
decode = f"rtpvp8depay ! vp8dec ! identity eos-after={frames} ! fakesink"
pipeline = Gst.parse_launch(f'udpsrc port={port} caps="{caps}" ! srtpdec name=srtp ! {decode}')
policy = f"application/x-srtp,srtp-key=(buffer){key},srtp-cipher={cipher},srtp-auth=null,srtcp-cipher={cipher},srtcp-auth=null"
pipeline.get_by_name("srtp").connect("request-key", lambda _element, _ssrc: Gst.Caps.from_string(policy))
pipeline.set_state(Gst.State.PLAYING)
message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, Gst.MessageType.EOS | Gst.MessageType.ERROR)
pipeline.set_state(Gst.State.NULL)
if message.type == Gst.MessageType.ERROR:
    sys.exit(message.parse_error()[0].message)
