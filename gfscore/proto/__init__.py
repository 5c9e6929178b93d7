"""The wire contract: `gfs.proto` and the code generated from it (`make proto`)."""
