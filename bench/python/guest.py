"""A participant by LiveKit's own SDK (native libwebrtc inside), with pictures and tones that a receiver can recognize."""

import asyncio
import sys

import numpy
from livekit import api, rtc

from client import until
from node import SECRET

WIDTH, HEIGHT, FRAMES_PER_SECOND = 320, 192, 15
RATE = 48_000

# A picture is 8 columns, black or white: the bits of its number. Its lower half is the complement, so that damage shows.
BITS = 8
COLUMN = WIDTH // BITS


class Guest:
    """In a room from `join` until `leave`. `events` are the names of what it was told, in order, each with its arguments."""

    EVENTS = (
        "participant_connected participant_disconnected track_published track_unpublished track_subscribed track_unsubscribed "
        "track_subscription_failed track_muted track_unmuted local_track_published local_track_unpublished room_metadata_changed "
        "participant_metadata_changed participant_attributes_changed participant_name_changed data_received disconnected "
        "reconnecting reconnected active_speakers_changed participant_permissions_changed e2ee_state_changed"
    ).split()

    def __init__(self, node, room, identity, **grants):
        self.url = node.http.replace("http", "ws", 1)
        self.identity = identity
        self.token = sign(room, identity, **grants)
        self.events = []
        self.tasks = []
        # Of its tone.
        self.volume = 10_000
        self.room = rtc.Room()
        for name in self.EVENTS:
            self.room.on(name, lambda *arguments, name=name: self.events.append((name, arguments)))

    async def join(self, **options):
        await self.room.connect(self.url, self.token, rtc.RoomOptions(connect_timeout=5, **options))
        return self

    async def leave(self):
        for task in self.tasks:
            task.cancel()
        if self.room.isconnected():
            await asyncio.wait_for(self.room.disconnect(), 10)

    @property
    def me(self):
        return self.room.local_participant

    def told(self, name):
        """The arguments of each event of this name."""
        return [arguments for told, arguments in self.events if told == name]

    async def until_told(self, name, count=1, seconds=15):
        await until(f"{self.identity} is told {name}", lambda: len(self.told(name)) >= count, seconds)
        return self.told(name)[count - 1]

    def tracks(self, identity, kind=None):
        """What it gets of somebody: publications whose media is subscribed."""
        participant = self.room.remote_participants.get(identity)
        publications = participant.track_publications.values() if participant else ()
        return [p for p in publications if p.track is not None and kind in (None, p.kind)]

    async def track(self, identity, kind):
        await until(f"a track of {identity}", lambda: self.tracks(identity, kind))
        return self.tracks(identity, kind)[0].track

    async def publish_video(self, chroma, codec=rtc.VideoCodec.VP8):
        """Numbered pictures of one colour."""
        source = rtc.VideoSource(WIDTH, HEIGHT)
        track = rtc.LocalVideoTrack.create_video_track("camera", source)
        options = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_CAMERA,
            simulcast=False,
            video_codec=codec,
            video_encoding=rtc.VideoEncoding(max_framerate=FRAMES_PER_SECOND, max_bitrate=600_000),
        )
        self.tasks.append(asyncio.create_task(self._paint(source, chroma)))
        return await self.me.publish_track(track, options)

    async def publish_tone(self, hertz):
        source = rtc.AudioSource(RATE, 1)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        self.tasks.append(asyncio.create_task(self._sing(source, hertz)))
        return await self.me.publish_track(track, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False))

    async def _paint(self, source, chroma):
        number = 0
        while True:
            data = bytearray(draw(number, chroma))
            source.capture_frame(rtc.VideoFrame(WIDTH, HEIGHT, rtc.VideoBufferType.I420, data))
            number += 1
            await asyncio.sleep(1 / FRAMES_PER_SECOND)

    async def _sing(self, source, hertz):
        samples, begin = RATE // 50, 0
        while True:
            wave = numpy.sin(2 * numpy.pi * hertz * (begin + numpy.arange(samples)) / RATE)
            data = (wave * self.volume).astype(numpy.int16).tobytes()
            await source.capture_frame(rtc.AudioFrame(data, RATE, 1, samples))
            begin += samples


def sign(room, identity, key="e2e", secret=SECRET, **grants):
    """A token by LiveKit's own library."""
    grants = api.VideoGrants(room_join=True, room=room, **grants)
    return api.AccessToken(key, secret).with_identity(identity).with_grants(grants).to_jwt()


def draw(number, chroma):
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    row = numpy.repeat(numpy.where(bits, 235, 16).astype(numpy.uint8), COLUMN)
    luma = numpy.vstack([numpy.tile(row, (HEIGHT // 2, 1)), numpy.tile(251 - row, (HEIGHT // 2, 1))])
    quarter = WIDTH * HEIGHT // 4
    return luma.tobytes() + bytes([chroma[0]]) * quarter + bytes([chroma[1]]) * quarter


def read(frame):
    """The number of a picture and its colour; `None` instead of the number when it is no picture of `draw`."""
    width, height = frame.width, frame.height
    planes = [numpy.frombuffer(frame.get_plane(i), numpy.uint8) for i in range(3)]
    luma = planes[0].reshape(height, -1)[:, :width].astype(int)
    column = width // BITS
    middles = [slice(i * column + column // 4, (i + 1) * column - column // 4) for i in range(BITS)]
    upper = [luma[height // 8 : height * 3 // 8, middle].mean() for middle in middles]
    lower = [luma[height * 5 // 8 : height * 7 // 8, middle].mean() for middle in middles]
    chroma = tuple(int(plane.mean()) for plane in planes[1:])
    if any(abs(high - low) < 120 for high, low in zip(upper, lower)):
        return None, chroma
    return sum(1 << i for i in range(BITS) if upper[i] > 126), chroma


async def watch(track, count, seconds=20):
    """The next `count` pictures of a track, as `read` reads them."""
    stream = rtc.VideoStream(track, format=rtc.VideoBufferType.I420)
    pictures = []

    async def collect():
        async for event in stream:
            pictures.append(read(event.frame))
            if len(pictures) == count:
                return

    try:
        await asyncio.wait_for(collect(), seconds)
    except asyncio.TimeoutError:
        pass
    finally:
        await stream.aclose()
    return pictures


async def listen(track, seconds=0.5, patience=15):
    """The loudest frequency of the next piece of a track, in hertz, and its share of the power. Silence is (0, 0)."""
    stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1)
    pieces = []

    async def collect():
        async for event in stream:
            pieces.append(numpy.frombuffer(event.frame.data, numpy.int16).astype(float))
            if sum(map(len, pieces)) >= RATE * seconds:
                return

    try:
        await asyncio.wait_for(collect(), patience)
    except asyncio.TimeoutError:
        pass
    finally:
        await stream.aclose()
    wave = numpy.concatenate(pieces) if pieces else numpy.zeros(RATE // 10)
    power = numpy.abs(numpy.fft.rfft(wave * numpy.hanning(len(wave)))) ** 2
    if power.sum() < 1e6:
        return 0, 0
    loudest = int(power.argmax())
    near = power[max(0, loudest - 4) : loudest + 5].sum()
    return round(loudest * RATE / len(wave)), near / power.sum()


async def until_tone(track, hertz, seconds=15):
    """Listens until the tone is there."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        heard, share = await listen(track, 0.25, 2)
        if abs(heard - hertz) <= 20 and share > 0.5:
            return
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"no tone of {hertz} Hz within {seconds} s: {heard} Hz is {share:.0%} of the power")


class Wire:
    """A TCP proxy to `node`, which may become another, that can be cut. Who connects while it is not `open` waits."""

    def __init__(self, node):
        self.node, self.pairs, self.open = node, [], asyncio.Event()
        self.open.set()

    async def start(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def _accept(self, reader, writer):
        await self.open.wait()
        host, port = self.node.http.removeprefix("http://").rsplit(":", 1)
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return writer.transport.abort()
        self.pairs += [writer, far_writer]
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    @staticmethod
    async def _pump(reader, writer):
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    def cut(self):
        pairs, self.pairs = self.pairs, []
        for writer in pairs:
            writer.transport.abort()

    def close(self):
        self.cut()
        self.server.close()


async def tell(url, room, identity):
    """Says on standard output what a guest in a process of its own is told: the event, and the number that a message begins with."""
    node = type("Elsewhere", (), {"http": url})
    guest = await Guest(node, room, identity).join()
    told = 0
    while True:
        for name, arguments in guest.events[told:]:
            words = [name] + [packet.data.split(b"\0")[0].decode() for packet in arguments if isinstance(packet, rtc.DataPacket)]
            print(*words, flush=True)
            told += 1
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(tell(*sys.argv[1:]))
