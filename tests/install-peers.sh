#!/bin/sh
# Install the programs that the tests talk to, where they are missing: other proxies, servers and clients.
# For Debian, as root. Not one of their services is started: the tests start what they need themselves.
set -eu

PATH=$PATH:/usr/sbin:/sbin
PEERS="microsocks:microsocks danted:dante-server nginx:nginx-light haproxy:haproxy caddy:caddy apache2:apache2-bin
    tinyproxy:tinyproxy-bin squid:squid chromium:chromium
    /usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream v2ray:v2ray
    curl:curl wget:wget git:git npm:npm java:default-jdk-headless ssh:openssh-client sshd:openssh-server openssl:openssl ip:iproute2 fail2ban-regex:fail2ban
    dh:debhelper dh_python3:dh-python lintian:lintian busybox:busybox
    bash:bash zsh:zsh fish:fish man:man-db mandoc:mandoc tmux:tmux"

# What our Debian package depends on, which installs in the tests then without a network.
for name in gevent gevent-websocket socks websocket configobj idna; do
    PEERS="$PEERS /usr/share/doc/python3-$name:python3-$name"
done

missing=
for peer in $PEERS; do
    command -v "${peer%%:*}" >/dev/null || [ -e "${peer%%:*}" ] || missing="$missing ${peer#*:}"
done
if [ -z "$missing" ]; then
    echo "install-peers: all are there"
    exit
fi

# Debian's installation scripts start a service unless this program forbids it.
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM
fi

install() {
    apt-get -q update || return
    wanted=
    for package in $missing; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            wanted="$wanted $package"
        else
            echo "install-peers: this release of Debian has no $package: the tests that need it are skipped"
        fi
    done
    # shellcheck disable=SC2086  # one word for each package
    apt-get -q install -y --no-install-recommends $wanted
}

echo "install-peers: installing$missing"
export DEBIAN_FRONTEND=noninteractive
install || { echo "install-peers: trying once more"; install; }
