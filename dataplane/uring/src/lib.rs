//! Rings, buffers, sockets, GSO, feature probe and the counting allocator: the only unsafe code of the appliance.
