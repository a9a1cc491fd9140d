"""Audio front ends: a batch of waveforms in, a batch of spectrograms out, on the device.

Results made with different front ends do not compare, so each has a name, settings included, that
goes into the fingerprint of the data. A new one is a :class:`FrontEnd`, or other settings of one,
and an entry of :data:`FRONT_ENDS`. What each computes: docs/datasets/audio-and-frames.md.
"""

from __future__ import annotations

from collections.abc import Callable

from mmbench.data.frontends.base import FULL_SCALE as FULL_SCALE
from mmbench.data.frontends.base import FrontEnd as FrontEnd
from mmbench.data.frontends.base import as_waveform as as_waveform
from mmbench.data.frontends.base import repeated as repeated
from mmbench.data.frontends.kaldi_fbank import KaldiFbank as KaldiFbank
from mmbench.data.frontends.log_mel import LogMel as LogMel
from mmbench.data.frontends.ogm_stft import OgmStft as OgmStft
from mmbench.data.frontends.ogm_stft import OgmStftVgg as OgmStftVgg
from mmbench.data.frontends.pmr_spec import PmrSpec as PmrSpec
from mmbench.errors import unknown_name

FRONT_ENDS: dict[str, Callable[[int], FrontEnd]] = {
    "ogm_stft": lambda rate: OgmStft(),
    "lfm_stft": lambda rate: OgmStft(seconds=20),
    "ogm_stft_vgg": lambda rate: OgmStftVgg(),
    "ogm_stft_vgg_drawn": lambda rate: OgmStftVgg(draw_at_evaluation=True),
    "pmr_spec": lambda rate: PmrSpec(),
    "pmr_spec_3s": lambda rate: PmrSpec(samples=48_000),
    "pmr_spec_22050": lambda rate: PmrSpec(rate=22050),
    "kaldi_fbank": KaldiFbank,
    "log_mel": LogMel.for_sound,
}
"""By name; called with the rate (Hz) at which the sound is stored. For those that have a rate of
their own it is resampled (:mod:`mmbench.data.frontends.source`)."""


def build_front_end(name: str, rate: int) -> FrontEnd:
    """Return the front end of a name for sound that is stored at ``rate`` Hz.

    Raises :class:`mmbench.errors.RequestError` for an unknown name.
    """
    if name not in FRONT_ENDS:
        raise unknown_name("front end", name, FRONT_ENDS)
    return FRONT_ENDS[name](rate)
