//! Compiles the interfaces with `protox`, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=gogate");
    let descriptors = protox::compile(["gogate/v1/peer.proto", "gogate/v1/control.proto"], ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
