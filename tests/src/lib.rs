//! The lab: namespaces, cgroups, sockets and an independent witness.
