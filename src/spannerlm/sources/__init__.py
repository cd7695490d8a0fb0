"""Where labels come from: functions in a process that can be killed, verifiers, judges behind a server.

Each is a reward or comparison function (`spannerlm.rewards`), to be given to `spannerlm.explore` as it is.
"""
