"""Who learns: full weights or adapters beside a network that stays as it is, and what makes either fit into memory."""
