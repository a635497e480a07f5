#!/bin/sh
# Start one node: fill in its properties, format its disk once (with the first users), become the broker.
set -eu
umask 077
sed -e "s|@NODE_ID@|$NODE_ID|" -e "s|@HOST_1@|$HOST_1|" -e "s|@HOST_2@|$HOST_2|" -e "s|@HOST_3@|$HOST_3|" \
    -e "s|@ADVERTISED@|$ADVERTISED|" -e "s|@ADMIN_PASSWORD@|$ADMIN_PASSWORD|g" \
    /config/server.properties > /tmp/server.properties
if [ ! -f /data/meta.properties ]; then
    /opt/kafka/bin/kafka-storage.sh format -t "$CLUSTER_ID" -c /tmp/server.properties \
        --add-scram "SCRAM-SHA-512=[name=admin,password=$ADMIN_PASSWORD]" \
        --add-scram "SCRAM-SHA-512=[name=ztf-service,password=$SERVICE_PASSWORD]"
fi
exec /opt/kafka/bin/kafka-server-start.sh /tmp/server.properties
