"""Names of the classes of corpora whose lists do not say which classes there are."""

from __future__ import annotations

KINETICS_SOUNDS = (
    *("blowing_nose", "blowing_out_candles", "bowling", "chopping_wood", "dribbling_basketball"),
    *("laughing", "mowing_lawn", "playing_accordion", "playing_bagpipes", "playing_bass_guitar"),
    *("playing_clarinet", "playing_drums", "playing_guitar", "playing_harmonica"),
    *("playing_keyboard", "playing_organ", "playing_piano", "playing_saxophone"),
    *("playing_trombone", "playing_trumpet", "playing_violin", "playing_xylophone"),
    *("ripping_paper", "shoveling_snow", "shuffling_cards", "singing", "stomping_grapes"),
    *("tap_dancing", "tapping_guitar", "tapping_pen", "tickling"),
)
"""31 of Kinetics-400, the selection of AdaMML (IBM/AdaMML#3), in the order of their names, by which
OGM-GE's lists number them."""
AVE = (
    *("Accordion", "Acoustic guitar", "Baby cry, infant cry", "Banjo", "Bark", "Bus", "Cat"),
    *("Chainsaw", "Church bell", "Clock", "Female speech, woman speaking"),
    *("Fixed-wing aircraft, airplane", "Flute", "Frying (food)", "Goat", "Helicopter", "Horse"),
    *("Male speech, man speaking", "Mandolin", "Motorcycle", "Race car, auto racing"),
    *("Rodents, rats, mice", "Shofar", "Toilet flush", "Train horn", "Truck", "Ukulele"),
    "Violin, fiddle",
)
"""The 28 of AVE, in the order of their names."""
