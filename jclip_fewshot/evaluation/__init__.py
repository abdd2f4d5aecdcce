"""How good it is: the only package that judges answers by test labels; scores, suites, leaderboard, benchmark."""
