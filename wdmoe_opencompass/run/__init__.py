"""The folder of a run on disk, without OpenCompass: names, lock, recovery, failures and progress."""
