//! The gRPC interfaces of gogate: messages and stubs generated from `gogate/v1/*.proto`.
//!
//! Nothing is written by hand here; the comments are in the `.proto` files.

/// `gogate.v1`: node to node (`peer.proto`); services and operators to a node (`control.proto`).
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("gogate.v1");
}
