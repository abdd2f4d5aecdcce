"""The page about a run: its files read, numbers taken out, figures drawn, HTML written. Never starts Jittor."""
