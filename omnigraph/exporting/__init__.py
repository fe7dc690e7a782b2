"""What an export is asked, how it is planned, and the passes of one program."""
