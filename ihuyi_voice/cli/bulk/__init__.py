"""`ihuyi-voice bulk`: submit every row of a file."""
