//! PURE. What Kubernetes' objects mean: `compile(resources)` is a mesh and what is wrong with single objects.
