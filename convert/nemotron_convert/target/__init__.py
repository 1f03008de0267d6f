"""The output checkpoint: its layout, the copying into its files, their formats and a reader."""
