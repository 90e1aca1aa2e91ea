"""What each verb can be asked for: one dataclass per verb, whose fields are its flags and whose sentences are its help.

``mtlsi.flags`` makes the flags. A field without a default is a positional argument, a keyword-only one a required flag;
``num_``, ``_hw``, ``_xy``, ``_m`` and ``_path`` say what a value is and are left out of the flag.

``measuring``: evaluate, diagnose, pack, boundary, benchmark. ``training``: demo, study. ``using``: predict, export, page.
``data``: check, derive, prepare.
"""
