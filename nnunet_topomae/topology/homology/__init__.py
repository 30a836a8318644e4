"""Persistent homology of volumes by discrete Morse theory, without any library but numpy and numba.

A volume is a cubical complex whose vertices are the voxels; its super-level sets grow while the level falls. Every cell
(edge, square, cube) belongs to the voxel that completes it, the last of its corners. The cells that belong to one voxel
are its *lower star*. Within a lower star most cells are paired off, each with one of its faces: these pairs are the
*discrete gradient*, and they create nothing that lasts (Robins, Wood and Sheppard 2011). Only the unpaired, *critical*
cells can create or destroy a class, and there are few of them:

- components (dimension 0): union-find over critical edges,
- voids (dimension 2): union-find over critical squares and the cubes on both their sides, from the last to the first,
- loops (dimension 1): the critical squares that are left are reduced against the critical edges that are left,

in this order, as Guillou, Vidal and Tierny (2023) propose. Every step follows the discrete gradient to reach the next
critical cell. `cells` names the cells around a voxel, `lower_stars` tabulates all lower stars, `order` sorts the
voxels, `gradient` looks up every voxel's lower star, `meetings` is the union-find; `components`, `voids` and `loops`
make the pairs, `pairs` runs it all.
"""
