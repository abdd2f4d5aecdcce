"""How good it is: scores, labelled feature suites, tasks drawn from them, the local leaderboard.

In: answers and labels. Out: numbers and tables. The only room that sees test labels; imports everything below it.
"""
