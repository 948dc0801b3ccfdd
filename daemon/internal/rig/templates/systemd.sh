# The first process of new PID, mount, cgroup, UTS and IPC namespaces: makes a
# copy-on-write view of this machine's files and becomes systemd in it. $1 is an
# empty directory. Every path before pivot_root is a relative one, so that no
# symbolic link leads out of the view.
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
cd root
mount -t proc proc proc
# Nothing in here may set up the machine itself.
mount -o bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev
for name in null zero full random urandom tty; do
  : >dev/$name
  mount -o bind /dev/$name dev/$name
done
mkdir dev/pts dev/shm run/old
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
chmod 1777 dev/shm
pivot_root . run/old
cd /
umount -l run/old
rmdir run/old

# What this machine has enabled, and how it is set up, is not wanted here.
mount -t tmpfs -o mode=0755 tmpfs /etc/systemd
mount -t tmpfs tmpfs /usr/lib/systemd/system-generators
mount -t tmpfs tmpfs /usr/lib/systemd/user-environment-generators
: >/etc/machine-id
mkdir /etc/systemd/system
ln -s /dev/null /etc/systemd/system/systemd-journald-audit.socket
cat >/etc/systemd/journald.conf <<'END'
[Journal]
Storage=volatile
RateLimitIntervalSec=0
# Both belong to the machine's kernel.
ReadKMsg=no
Audit=
END
cat >/etc/systemd/system/rig.target <<'END'
[Unit]
DefaultDependencies=no
Wants=systemd-journald.service
After=systemd-journald.service
END
# As systemd's own, but for the work of logind and PAM, which would want D-Bus:
# the directory and the variable.
cat >/etc/systemd/system/user@.service <<'END'
[Unit]
DefaultDependencies=no
[Service]
User=%i
Type=notify
Environment=XDG_RUNTIME_DIR=/run/user/%i
ExecStartPre=+/bin/install -d -m 0700 -o %i -g %i /run/user/%i
ExecStart=/lib/systemd/systemd --user
Slice=user-%i.slice
KillMode=mixed
Delegate=yes
TasksMax=infinity
END
# The first sandboxed service of the system makes this; users' managers cannot.
mkdir -p -m 0755 /run/systemd/unit-root
# Services with mount sandboxes of their own follow later mounts.
mount --make-rshared /
exec /lib/systemd/systemd --system --unit=rig.target --log-target=journal
