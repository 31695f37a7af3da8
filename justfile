# The commands one types; `just` lists them.

# List the recipes
default:
    @just --list

# Everything that a change must pass, but for the tests that boot machines
check:
    scripts/test --fast

# All tests, also those that build and boot images
test *filter:
    scripts/test {{filter}}

# Format
fmt:
    cargo fmt --all

# Lints as errors
lint:
    cargo clippy --all-targets --locked -- -D warnings

# Bake a profile and boot it
run profile='profiles/server.ncl':
    cargo run --release --locked -- run {{profile}}

# Write docs/reference/cli.md anew
reference:
    KILN_UPDATE_DOCS=1 cargo test --locked --test fast reference

# Licences and advisories of the dependencies (needs cargo-deny)
deny:
    cargo deny check

# Feed a parser with generated input: deb, control, release, lock
fuzz target seconds='60':
    scripts/fuzz {{target}} {{seconds}}

# Compare with other image builders
bench:
    scripts/bench build

# A strict local AWS on the loopback interface, in the foreground
aws-local *options:
    scripts/aws-local {{options}}
