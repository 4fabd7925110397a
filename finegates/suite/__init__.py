"""The suite that reproduces and audits the paper with the library; nothing else imports it."""
