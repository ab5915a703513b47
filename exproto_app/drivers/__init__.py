"""Where the hosts were in 0.1: `exproto_app.hosts` has them now."""
