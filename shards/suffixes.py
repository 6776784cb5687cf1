"""How files of sound are called; what is in them is recognised by their content."""

from __future__ import annotations

VIDEO_SUFFIXES = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm", ".wmv"})
"""Of files that hold pictures, too, as a rule: beside a file of sound alone, theirs is the same once more."""
AUDIO_SUFFIXES = VIDEO_SUFFIXES | frozenset(
    {
        *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".dsf", ".dts", ".eac3"),
        *(".flac", ".m4a", ".m4b", ".mka", ".mp2", ".mp3", ".mpc", ".oga", ".ogg", ".opus", ".qcp", ".rf64", ".shn"),
        *(".snd", ".sph", ".spx", ".tak", ".tta", ".voc", ".w64", ".wav", ".wave", ".wma", ".wv"),
    }
)
"""Of files that libsndfile or an ffmpeg decodes."""
