//! Sans-IO link between two nodes: frames between their workers, and control between themselves.
