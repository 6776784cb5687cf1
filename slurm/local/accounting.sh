# Sourced by up.sh for --accounting: MariaDB and slurmdbd, on ports of their own.
if ! is_running mariadbd; then
    database=$state/mariadb
    mkdir -p "$database"
    chown mysql "$database"
    [[ -d $database/mysql ]] || mariadb-install-db --user=mysql --datadir="$database" >"$state/log/mariadb.out" 2>&1
    mariadbd --no-defaults --user=mysql --datadir="$database" --bind-address=127.0.0.1 --port=17828 \
        --socket="$database/socket" --pid-file="$database/pid" --log-error="$database/log" >/dev/null 2>&1 &
    disown
    for ((second = 0; second < 30; second++)); do
        [[ -S $database/socket && -s $database/pid ]] && break
        sleep 1
    done
    cp "$database/pid" "$state/mariadbd.pid" || fail "has no database; see $database/log"
    [[ -e $state/database-password ]] || (umask 077 && head -c 18 /dev/urandom | base64 >"$state/database-password")
    mariadb --no-defaults --socket="$database/socket" <<SQL
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '$(cat "$state/database-password")';
CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY '$(cat "$state/database-password")';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';
SQL
fi
if ! is_running slurmdbd; then
    (umask 077 && cat >"$state/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$state/munge/socket
DbdHost=localhost
DbdPort=17829
SlurmUser=root
PidFile=$state/slurmdbd.pid
LogFile=$state/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=17828
StorageUser=slurm
StoragePass=$(cat "$state/database-password")
StorageLoc=slurm_acct_db
CONF
    # It looks for slurmdbd.conf beside slurm.conf.
    SLURM_CONF=$state/slurm.conf slurmdbd || fail "has no slurmdbd; see $state/log/slurmdbd.log"
    for ((second = 0; second < 30; second++)); do
        (exec 3<>/dev/tcp/127.0.0.1/17829) 2>/dev/null && break
        sleep 1
    done
fi
