"""SOCKS5: RFC 1928 with the logins of RFC 1929."""
