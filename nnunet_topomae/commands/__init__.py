"""The commands of `nnunet-topomae`, one module each."""
