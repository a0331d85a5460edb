# Derives the properties from the variables, as the image apache/kafka does, and starts the broker.
set -ef
env | sed -n 's/^KAFKA_\([A-Z_]*\)=/\1=/p' | while IFS='=' read -r name value; do
    echo "$(echo "$name" | tr 'A-Z_' 'a-z.')=$value"
done >/tmp/server.properties
run="java -Xmx512m -XX:+UseSerialGC -cp /opt/kafka/libs/*"
[ -e "$KAFKA_LOG_DIRS/meta.properties" ] ||
    $run kafka.tools.StorageTool format -t 4L6g3nShT-eMCtK--X86sw -c /tmp/server.properties
exec $run kafka.Kafka /tmp/server.properties
