// The behaviours of MQTT with Eclipse's client for Java. Called with the behaviour's name; see
// README.md.

import java.io.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.*;
import org.eclipse.paho.client.mqttv3.*;
import org.eclipse.paho.client.mqttv3.persist.MemoryPersistence;

public class Mqtt {
    static final long PATIENCE_S = 30;
    static final BufferedReader STDIN = new BufferedReader(new InputStreamReader(System.in));

    interface Behaviour {
        void run() throws Exception;
    }

    static void saw(Object... what) {
        StringJoiner line = new StringJoiner(" ");
        for (Object one : what) line.add(one instanceof int[] all ? Arrays.toString(all) : String.valueOf(one));
        System.out.println(line);
        System.out.flush();
    }

    static void ask(String order) throws IOException {
        saw("!" + order);
        STDIN.readLine();
    }

    /** A client that keeps what it hears. */
    static class Client implements MqttCallback {
        final MqttAsyncClient client;
        final BlockingQueue<String> heard = new LinkedBlockingQueue<>();
        final CountDownLatch end = new CountDownLatch(1);
        String opened;

        static MqttConnectOptions options(boolean clean) {
            MqttConnectOptions options = new MqttConnectOptions();
            options.setCleanSession(clean);
            options.setMqttVersion(MqttConnectOptions.MQTT_VERSION_3_1_1);
            options.setMaxInflight(500);
            return options;
        }

        Client(String id, MqttConnectOptions options) throws Exception {
            this(id, options, "tcp://127.0.0.1:" + System.getenv("MQTT_PORT"));
        }

        Client(String id, MqttConnectOptions options, String url) throws Exception {
            client = new MqttAsyncClient(url, id, new MemoryPersistence());
            client.setCallback(this);
            IMqttToken token = client.connect(options);
            try {
                token.waitForCompletion(PATIENCE_S * 1000);
                opened = "present " + token.getSessionPresent();
            } catch (MqttException refused) {
                opened = "refused " + refused.getReasonCode();
            }
        }

        public void connectionLost(Throwable cause) {
            end.countDown();
        }

        public void messageArrived(String topic, MqttMessage it) {
            heard.add(topic + "=" + text(it) + " " + it.getQos() + " " + it.isRetained());
        }

        static String text(MqttMessage it) {
            String text = new String(it.getPayload(), StandardCharsets.UTF_8);
            return text.length() > 1000 ? text.length() + " bytes" : text;
        }

        public void deliveryComplete(IMqttDeliveryToken token) {}

        int[] subscribe(String[] filters, int[] qos) throws Exception {
            IMqttToken token = client.subscribe(filters, qos);
            try {
                token.waitForCompletion(PATIENCE_S * 1000);
            } catch (MqttException one) {
                // A single filter that is refused.
            }
            return token.getGrantedQos();
        }

        int[] subscribe(String filter, int qos) throws Exception {
            return subscribe(new String[] {filter}, new int[] {qos});
        }

        void publish(String topic, String payload, int qos, boolean retain) throws Exception {
            byte[] bytes = payload.getBytes(StandardCharsets.UTF_8);
            client.publish(topic, bytes, qos, retain).waitForCompletion(PATIENCE_S * 1000);
        }

        List<String> take(int count) throws Exception {
            List<String> got = new ArrayList<>();
            while (got.size() < count) {
                String one = heard.poll(PATIENCE_S, TimeUnit.SECONDS);
                if (one == null) throw new IllegalStateException("only " + got);
                got.add(one);
            }
            return got;
        }

        List<String> sorted(int count) throws Exception {
            List<String> got = take(count);
            Collections.sort(got);
            return got;
        }

        void close() throws Exception {
            client.disconnect().waitForCompletion(PATIENCE_S * 1000);
        }
    }

    static Client open(String id) throws Exception {
        return new Client(id, Client.options(true));
    }

    static void messages() throws Exception {
        Client hearer = open("hearer"), speaker = open("speaker");
        saw(hearer.opened, hearer.subscribe(new String[] {"a/+", "b/#", "c", "bad topic"}, new int[] {0, 1, 2, 1}));
        for (int qos = 0; qos < 3; qos++)
            for (String topic : new String[] {"a/x", "b", "b/x/y", "c"})
                speaker.publish(topic, topic + " " + qos, qos, false);
        saw(hearer.sorted(12));
        hearer.client.unsubscribe("b/#").waitForCompletion(PATIENCE_S * 1000);
        speaker.publish("b", "gone", 1, false);
        speaker.publish("c", "last", 2, false);
        saw(hearer.take(1));
    }

    static void flood() throws Exception {
        Client hearer = open("hearer"), speaker = open("speaker");
        hearer.subscribe("f/#", 2);
        List<IMqttDeliveryToken> tokens = new ArrayList<>();
        for (int at = 0; at < 300; at++)
            tokens.add(speaker.client.publish("f/" + at % 3, String.valueOf(at).getBytes(), at % 3, false));
        for (IMqttDeliveryToken token : tokens) token.waitForCompletion(PATIENCE_S * 1000);
        List<Integer> numbers = new ArrayList<>();
        for (String one : hearer.take(300)) numbers.add(Integer.valueOf(one.split("[= ]")[1]));
        saw(new TreeSet<>(numbers).size() == 300);
        for (int qos = 1; qos < 3; qos++) {
            int last = -1;
            boolean inOrder = true;
            for (int one : numbers)
                if (one % 3 == qos) {
                    inOrder &= one > last;
                    last = one;
                }
            saw(qos, inOrder);
        }
    }

    static void retained() throws Exception {
        Client speaker = open("speaker");
        for (String name : new String[] {"one", "two"}) speaker.publish("r/" + name, name, 1, true);
        speaker.publish("r/one", "one again", 2, true);
        Client hearer = open("hearer");
        hearer.subscribe("r/#", 1);
        saw(hearer.sorted(2));
        speaker.publish("r/two", "", 0, true);
        saw(hearer.take(1));
        Thread.sleep(1000);
        Client other = open("other");
        other.subscribe("r/+", 2);
        saw(other.take(1));
    }

    static void sessions() throws Exception {
        Client keeper = new Client("keeper", Client.options(false));
        saw(keeper.opened, keeper.subscribe("k/#", 2));
        keeper.close();
        Client speaker = open("speaker");
        for (int at = 0; at < 6; at++) speaker.publish("k/" + at, String.valueOf(at), at % 3, false);
        keeper = new Client("keeper", Client.options(false));
        saw(keeper.opened, keeper.sorted(4));
        Client taker = new Client("keeper", Client.options(false));
        saw(taker.opened, keeper.end.await(PATIENCE_S, TimeUnit.SECONDS));
        speaker.publish("k/x", "to the taker", 1, false);
        saw(taker.take(1));
        taker.close();
        Thread.sleep(1500);
        saw(open("keeper").opened);
    }

    static void will() throws Exception {
        Client hearer = open("hearer");
        hearer.subscribe("w/#", 1);
        MqttConnectOptions options = Client.options(true);
        options.setWill("w/polite", "never".getBytes(), 1, false);
        new Client("polite", options).close();
        options = Client.options(true);
        options.setWill("w/broken", "gone".getBytes(), 1, true);
        new Client("broken", options).client.disconnectForcibly(0, 1, false);
        saw(hearer.take(1));
        Client other = open("other");
        other.subscribe("w/#", 1);
        saw(other.take(1));
    }

    static void kill() throws Exception {
        Client keeper = new Client("keeper", Client.options(false));
        keeper.subscribe("k", 2);
        keeper.close();
        Client speaker = open("speaker");
        speaker.publish("k", "one", 1, true);
        speaker.publish("k", "two", 2, false);
        ask("stop");
        ask("start");
        keeper = new Client("keeper", Client.options(false));
        saw(keeper.opened, keeper.take(2));
        Client other = open("other");
        other.subscribe("k", 0);
        saw(other.take(1));
    }

    static void users() throws Exception {
        for (String[] user : new String[][] {{"u", "p"}, {"u", "wrong"}, null}) {
            MqttConnectOptions options = Client.options(true);
            if (user != null) {
                options.setUserName(user[0]);
                options.setPassword(user[1].toCharArray());
            }
            Client client = new Client("c", options);
            saw(Arrays.toString(user), client.opened);
            if (!client.client.isConnected()) continue;
            saw(client.subscribe(new String[] {"open/a", "shut/a"}, new int[] {1, 1}));
            client.publish("shut/a", "x", 1, false);
            client.publish("open/a", "x", 1, false);
            saw(client.take(1));
        }
    }

    static void websocket() throws Exception {
        String url = "ws://127.0.0.1:" + System.getenv("WS_PORT") + "/mqtt";
        Client client = new Client("ws", Client.options(true), url);
        saw(client.opened, client.subscribe("a", 2));
        client.publish("a", "x".repeat(100_000), 2, false);
        saw(client.take(1));
    }

    public static void main(String[] args) throws Exception {
        Map<String, Behaviour> all = new HashMap<>();
        all.put("mqtt-messages", Mqtt::messages);
        all.put("mqtt-flood", Mqtt::flood);
        all.put("mqtt-retained", Mqtt::retained);
        all.put("mqtt-sessions", Mqtt::sessions);
        all.put("mqtt-will", Mqtt::will);
        all.put("mqtt-kill", Mqtt::kill);
        all.put("mqtt-users", Mqtt::users);
        all.put("mqtt-websocket", Mqtt::websocket);
        if (args[0].equals("version")) {
            saw(MqttAsyncClient.class.getPackage().getImplementationVersion());
            System.exit(0);
        }
        Behaviour behaviour = all.get(args[0]);
        if (behaviour == null) System.exit(77);
        behaviour.run();
        System.exit(0);
    }
}
