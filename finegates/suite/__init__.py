"""The suite that reproduces and audits the paper with the library."""
