"""The verb `eval`: a suite's run, its report, and two runs on the same items."""
