//! The life of the process: parse, build, run, drain, exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Read once, here: nothing below looks at the environment (.clippy.toml).
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| {
            name.starts_with("GOGATE_") || ["NO_COLOR", "VISUAL", "EDITOR"].contains(&name.as_str())
        })
        .collect();
    gogate::cli::run(std::env::args_os(), environment)
}
