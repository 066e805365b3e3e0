#!/bin/bash
# Installs the packages into this machine as README.md says, runs an attested job from submit to
# output, and purges them without a trace. Says what it finds as a test program does.
set -u
work=/root/packages
passed=0
failed=0

step() {
    local name=$1
    shift
    if "$@" >/tmp/step.log 2>&1; then
        echo "test packages::$name ... ok"
        passed=$((passed + 1))
    else
        echo "test packages::$name ... FAILED"
        cat /tmp/step.log
        failed=$((failed + 1))
    fi
}

# What is on the disk, accounts among it; not what other programs keep of their own accord: containerd makes
# /etc/cni/net.d when it starts.
traces() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \
        -o -path /nimbus -o -path "$NIMBUS_BIN_DIR" -o -path /var/log -o -path /var/cache \
        -o -path /var/lib/dpkg -o -path /var/lib/containerd -o -path "$work" -o -path /srv/images \
        -o -path /etc/cni -o -path /var/tmp -o -path '/etc/*-' -o -path /var/lib/systemd/timers \) -prune -o -print
    getent passwd
    getent group
    cat /etc/shadow
}

await() {
    local tries=600
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.2
    done
}

install_packages() { dpkg --install /nimbus/debs/*.deb; }

no_verifier_is_shared() {
    [ "$(dpkg --search '*/nimbus-verify' | wc -l)" = 2 ] && ! dpkg --search '*/nimbus-oci'
}

control_serves_as_its_own_user() {
    await test -s /var/lib/nimbus/control/endpoints.json || {
        journalctl --no-pager -u nimbus-control
        return 1
    }
    [ "$(ps -o user= -C nimbus-control)" = nimbus ] &&
        [ "$(stat -c %a /var/lib/nimbus/control)" = 700 ]
}

the_agent_waits_for_an_identity() { ! systemctl is-active nimbus-node; }

the_node_joins() {
    nimbusctl policy keygen --out policy &&
        install -m 644 policy.pub /etc/nimbus/policy.pub &&
        sed -i 's,^layout_roots = .*,layout_roots = ["/srv/images"],' /etc/nimbus/node.toml &&
        systemctl start containerd &&
        token=$(nimbusctl node token worker-1) &&
        nimbus-node join --config /etc/nimbus/node.toml --control 127.0.0.1:7444 --token "$token" &&
        systemctl start nimbus-node && await test -S /run/nimbus/node.sock || {
        journalctl --no-pager -u nimbus-node
        return 1
    }
}

a_policy_is_signed_and_applied() {
    nimbusctl attest keygen --out release || return 1
    {
        printf 'version = 1\nid = "first"\nserial = 1\nnot_after = 2099-01-01T00:00:00Z\n'
        printf '[trust.release]\nkind = "key"\ntlog = "off"\nkey = """\n%s\n"""\n' \
            "$(cat release.pub.pem)"
        printf '[need.released]\ntrust = "release"\n'
        printf 'predicate = ["https://slsa.dev/provenance/v1"]\n'
        printf '[[rule]]\nimages = ["oci:/srv/images/**"]\nrequire = ["released"]\n'
    } >policy.toml
    nimbusctl policy sign --key policy.key policy.toml -o policy.dsse &&
        nimbusctl policy apply policy.dsse
}

an_attested_job_runs() {
    "$NIMBUS_BIN_DIR/nimbus-forge" busybox /srv/images/hello latest &&
        nimbusctl attest --key release.pem oci:/srv/images/hello -o hello.json || return 1
    nimbusctl submit --wait --bundle hello.json oci:/srv/images/hello -- \
        /bin/sh -c 'echo installed; exit 7'
    [ $? = 7 ] || {
        journalctl --no-pager -u nimbus-node -u nimbus-control -u containerd | tail -n 60
        return 1
    }
    job=$(nimbusctl list --json | grep -o 'j[0-9a-f]\{32\}' | head -n 1)
    [ "$(nimbusctl logs "$job")" = installed ]
}

an_unattested_one_is_refused() {
    said=$(nimbusctl submit --wait oci:/srv/images/hello -- /bin/true 2>&1) && return 1
    echo "$said"
    case $said in *image.unattested*) ;; *) return 1 ;; esac
}

the_agent_is_restarted_by_systemd() {
    before=$(systemctl show -p MainPID --value nimbus-node)
    kill -9 "$before"
    await sh -c "[ \"\$(systemctl show -p MainPID --value nimbus-node)\" -gt 0 ] &&
        [ \"\$(systemctl show -p MainPID --value nimbus-node)\" != $before ]" || return 1
    await nimbusctl submit --wait --bundle hello.json oci:/srv/images/hello -- /bin/true
}

purge() {
    systemctl stop containerd
    dpkg --purge nimbus-node nimbus-control nimbusctl
}

nothing_is_left() {
    traces | sort >/tmp/after
    diff /tmp/before /tmp/after || return 1
    # shellcheck disable=SC2009
    ps -eo comm | grep -i nimbus | grep -v nimbus-guest && return 1
    ls -d /run/nimbus /sys/fs/cgroup/nimbus* 2>/dev/null && return 1
    systemctl list-unit-files --no-pager --no-legend 'nimbus-control*' 'nimbus-node*' | grep . && return 1
    return 0
}

mkdir -p "$work"
cd "$work" || exit 1
traces | sort >/tmp/before
echo
echo "running 11 tests"
step they_install install_packages
step each_daemon_has_a_verifier_of_its_own_and_the_test_program_is_in_none no_verifier_is_shared
step control_serves_as_a_user_of_its_own control_serves_as_its_own_user
step the_agent_waits_for_an_identity the_agent_waits_for_an_identity
step the_node_joins the_node_joins
step a_policy_is_signed_and_applied a_policy_is_signed_and_applied
step an_attested_job_runs an_attested_job_runs
step an_unattested_one_is_refused an_unattested_one_is_refused
step the_agent_is_restarted_by_systemd the_agent_is_restarted_by_systemd
step they_are_purged purge
step nothing_is_left nothing_is_left
verdict=ok
[ "$failed" = 0 ] || verdict=FAILED
echo
echo "test result: $verdict. $passed passed; $failed failed; 0 ignored; 0 measured; 0 filtered out"
[ "$failed" = 0 ]
