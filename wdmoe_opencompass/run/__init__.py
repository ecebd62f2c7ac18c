"""A folder of a run on the disk, without OpenCompass: names, lock, recovery, failures and progress."""
