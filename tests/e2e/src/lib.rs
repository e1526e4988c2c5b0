//! Behaviour on a real cluster, one file a behaviour.
