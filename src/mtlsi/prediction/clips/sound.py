"""The sound of a clip in another one: the packets as they are where the format allows, else compressed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtlsi.later import Later

if TYPE_CHECKING:
    import av.error
else:
    av = Later("av")  # the extra [video]

COPIED = {
    "mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"},
    "webm": {"opus", "vorbis"},
}
"""By format, the sound that is taken over as it is: what players expect there. Matroska takes all that FFmpeg can write."""
COMPRESSED = {"mp4": "aac", "matroska": "aac", "webm": "libopus"}
"""By format, what other sound becomes."""
USUAL_RATE = 48_000
RATES = {"aac": (44_100, 48_000, 32_000, 24_000, 22_050, 16_000, 11_025, 8_000), "libopus": (48_000,)}
"""By what sound becomes, the samples a second that it may have; other sound gets ``USUAL_RATE``."""
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
"""By the number of channels how they are arranged; other sound is mixed to two."""


class Copied:
    """A stream of sound whose packets are taken over as they are."""

    word = "copied"

    def __init__(self, stream: Any, container: Any):
        self.stream = container.add_stream_from_template(stream)
        self.last_stamp: int | None = None

    def packets(self, packet: Any | None) -> list[Any]:
        """What to write for a packet that was read; for None what is still to come at the end."""
        if packet is None or (self.last_stamp is not None and packet.dts <= self.last_stamp):  # damaged
            return []
        self.last_stamp, packet.stream = packet.dts, self.stream
        return [packet]


class Compressed:
    """A stream of sound that is decoded and compressed again; a packet that cannot be decoded is left out."""

    def __init__(self, stream: Any, container: Any):
        codec, decoder = COMPRESSED[container.format.name], stream.codec_context
        rate = decoder.sample_rate if decoder.sample_rate in RATES[codec] else USUAL_RATE
        layout = LAYOUTS.get(
            decoder.layout.nb_channels, "stereo"
        )  # its name says no more of some files than the number
        self.stream = container.add_stream(codec, rate=rate, layout=layout)
        self.decoder, self.word = decoder, f"compressed again as {codec.removeprefix('lib')}"

    def packets(self, packet: Any | None) -> list[Any]:
        """What to write for a packet that was read; for None what is still to come at the end."""
        try:
            frames = self.decoder.decode(packet)
        except av.error.FFmpegError:
            return []
        packets = [made for frame in frames for made in self.stream.encode(frame)]
        return packets if packet is not None else packets + self.stream.encode(None)


Track = Copied | Compressed
"""A stream of sound of the file that is written."""


def track_of(stream: Any, container: Any) -> Track | None:
    """The stream of ``container`` that takes the sound of ``stream``; None where nothing can decode it."""
    name, format_name = stream.codec_context.codec.canonical_name, container.format.name
    copied = COPIED.get(format_name) or container.supported_codecs
    try:
        return (Copied if name in copied else Compressed)(stream, container)
    except (av.error.FFmpegError, ValueError):
        return None
