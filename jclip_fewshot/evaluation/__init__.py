"""How good it is: scores, labelled feature suites, tasks drawn from them, the local leaderboard.

In: answers and labels. Out: numbers and tables. The only package that judges answers by test
labels; it may import all packages below it.
"""
