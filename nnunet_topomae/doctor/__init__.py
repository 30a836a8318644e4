"""``nnunet-topomae doctor``: checks every link between this package, nnU-Net and the machine."""
