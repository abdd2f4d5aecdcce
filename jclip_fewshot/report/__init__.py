"""The page about a run: its files read, numbers taken out, figures drawn, HTML written.

In: a run's folder. Out: report/index.html and its pictures. Never starts Jittor.
"""
