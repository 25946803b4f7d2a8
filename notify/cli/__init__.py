"""The commands of ``notify``, one module each.

A module of this package whose name is in :data:`COMMANDS` provides ``SUMMARY`` (one line), ``DESCRIPTION``,
``EXAMPLES``, ``arguments(parser)``, and ``run(options, terminal)``, which returns the exit status. Imports that only
``run`` needs are made there, so that ``notify --help`` stays fast.
"""

#: in the order in which ``notify --help`` lists them
COMMANDS = (
    *("token", "publish", "signal", "listen", "presence"),
    *(
        "nodes",
        "connections",
        "topics",
        "trace",
        "disconnect",
        "unsubscribe",
        "revoke",
        "shed",
        "reload",
        "drain",
    ),
    *("check-config", "doctor", "chaos", "new-epoch"),
)
