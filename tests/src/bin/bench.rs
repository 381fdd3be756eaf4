//! The benchmark. `cargo xtask bench` builds it for release and starts it as root.

fn main() -> anyhow::Result<()> {
    tests::bench::main()
}
