# Creates the database, once, and serves it to all hosts with the password.
set -e
data=/var/lib/postgresql/data/cluster
if [ ! -e $data/PG_VERSION ]; then
    echo "$POSTGRES_PASSWORD" >/tmp/password
    initdb --pgdata=$data --encoding=UTF8 --pwfile=/tmp/password --auth=scram-sha-256 >/tmp/initdb.log
    echo "host all all all scram-sha-256" >>$data/pg_hba.conf
    echo "CREATE DATABASE \"$POSTGRES_DB\";" | postgres --single -D $data postgres >/tmp/create.log
fi
exec postgres -D $data -c listen_addresses='*'
