// The behaviours of the table with jnats. Called with the behaviour's name; see README.md.

import io.nats.client.*;
import io.nats.client.impl.Headers;
import io.nats.client.impl.NatsMessage;
import java.io.*;
import java.nio.file.*;
import java.security.*;
import java.security.cert.*;
import java.security.spec.PKCS8EncodedKeySpec;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.function.BooleanSupplier;
import java.util.function.UnaryOperator;
import javax.net.ssl.*;

public class Client {
    static final Duration PATIENCE = Duration.ofSeconds(20);
    static final String URL = System.getenv("URL"), DIR = System.getenv("DIR");
    static final BufferedReader STDIN = new BufferedReader(new InputStreamReader(System.in));
    /** What connections told of themselves. */
    static final Queue<String> TOLD = new ConcurrentLinkedQueue<>();

    interface Behaviour {
        void run() throws Exception;
    }

    static void saw(Object... what) {
        StringJoiner line = new StringJoiner(" ");
        for (Object one : what) line.add(String.valueOf(one));
        System.out.println(line);
        System.out.flush();
    }

    static void check(boolean holds, String what) {
        if (!holds) throw new IllegalStateException(what);
    }

    static void ask(String order) throws IOException {
        saw("!" + order);
        STDIN.readLine();
    }

    static void until(BooleanSupplier condition) throws InterruptedException {
        long deadline = System.nanoTime() + PATIENCE.toNanos();
        while (!condition.getAsBoolean()) {
            check(System.nanoTime() < deadline, "it does not happen");
            Thread.sleep(20);
        }
    }

    static boolean told(String part) {
        return TOLD.stream().anyMatch(one -> one.contains(part));
    }

    static Options.Builder options() {
        return new Options.Builder().server(URL).reconnectWait(Duration.ofMillis(100))
            .maxReconnects(200).connectionTimeout(PATIENCE)
            .connectionListener((connection, event) -> TOLD.add(event.name()))
            .errorListener(new ErrorListener() {
                public void errorOccurred(Connection connection, String error) {
                    TOLD.add(error.toLowerCase());
                }

                public void exceptionOccurred(Connection connection, Exception exception) {}

                public void slowConsumerDetected(Connection connection, Consumer consumer) {
                    TOLD.add("slow consumer");
                }
            });
    }

    static Connection connect(Options.Builder options) throws Exception {
        return Nats.connect(options.build());
    }

    static Connection connect() throws Exception {
        return connect(options());
    }

    static byte[] bytes(Object value) {
        return String.valueOf(value).getBytes();
    }

    static String text(Message message) {
        check(message != null, "nothing came");
        return new String(message.getData());
    }

    static Message next(Subscription sub) throws Exception {
        return sub.nextMessage(PATIENCE);
    }

    static Subscription listen(Connection nc, String subject) throws Exception {
        Subscription sub = nc.subscribe(subject);
        nc.flush(PATIENCE);
        return sub;
    }

    static void works(Connection nc, String subject) throws Exception {
        Subscription sub = listen(nc, subject);
        nc.publish(subject, bytes("yes"));
        check(text(next(sub)).equals("yes"), "it does not work");
        sub.unsubscribe();
    }

    static void works(Connection nc) throws Exception {
        works(nc, "it.works");
    }

    static String refused(Options.Builder options) {
        try {
            connect(options.noReconnect());
        } catch (Exception error) {
            return String.valueOf(error.getMessage()).toLowerCase();
        }
        throw new IllegalStateException("it was let in");
    }

    static void answer(Connection nc, String subject, UnaryOperator<String> with) throws Exception {
        Dispatcher server = nc.createDispatcher(
            message -> nc.publish(message.getReplyTo(), bytes(with.apply(text(message)))));
        server.subscribe(subject);
        nc.flush(PATIENCE);
    }

    static X509Certificate certificate(String name) throws Exception {
        try (InputStream in = Files.newInputStream(Path.of(DIR, name))) {
            return (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(in);
        }
    }

    /** Trusts the table's authority, and shows a certificate if it is to. */
    static Options.Builder tls(boolean withCertificate) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        store.setCertificateEntry("ca", certificate("ca.pem"));
        if (withCertificate) {
            String pem = Files.readString(Path.of(DIR, "client.key")).replaceAll("-----.*-----|\\s", "");
            var spec = new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem));
            PrivateKey key = KeyFactory.getInstance("EC").generatePrivate(spec);
            store.setKeyEntry("client", key, new char[0],
                new java.security.cert.Certificate[] {certificate("client.pem")});
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        var keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(store, new char[0]);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        return options().sslContext(context);
    }

    /** What signs takes longer to load than a server waits for the signature. */
    static void warmUp() throws Exception {
        NKey.createUser(null).sign(new byte[1]);
    }

    static final Map<String, Behaviour> BEHAVIOURS = new HashMap<>();

    static {
        BEHAVIOURS.put("version", () -> saw(Nats.CLIENT_VERSION));
        BEHAVIOURS.put("connect", () -> {
            Connection nc = connect(options().connectionName("table"));
            saw("max_payload", nc.getMaxPayload(), "headers", nc.getServerInfo().isHeadersSupported());
            nc.RTT();
            works(nc);
        });
        BEHAVIOURS.put("verbose-pedantic", () -> works(connect(options().verbose().pedantic())));
        BEHAVIOURS.put("no-echo", () -> {
            Connection quiet = connect(options().noEcho()), other = connect();
            Subscription mine = listen(quiet, "echo"), theirs = listen(other, "echo");
            quiet.publish("echo", bytes(1));
            quiet.flush(PATIENCE);
            check(text(next(theirs)).equals("1"), "not heard");
            other.publish("echo", bytes(2));
            saw("heard", text(next(mine)));
        });
        BEHAVIOURS.put("publish-subscribe", () -> {
            Connection a = connect(), b = connect();
            Subscription one = listen(a, "log.*.disk"), rest = listen(a, "log.>");
            for (int at = 0; at < 1000; at++) b.publish("log.x.disk", bytes(at));
            b.publish("log.y", bytes("end"));
            for (int at = 0; at < 1000; at++) {
                check(text(next(one)).equals("" + at), "out of order");
                check(text(next(rest)).equals("" + at), "out of order");
            }
            saw("then", text(next(rest)));
        });
        BEHAVIOURS.put("queue", () -> {
            Queue<String> got = new ConcurrentLinkedQueue<>();
            Set<Integer> members = ConcurrentHashMap.newKeySet();
            for (int at = 0; at < 3; at++) {
                int member = at;
                Connection nc = connect();
                nc.createDispatcher(message -> {
                    members.add(member);
                    got.add(text(message));
                }).subscribe("work", "crew");
                nc.flush(PATIENCE);
            }
            Connection sender = connect();
            for (int at = 0; at < 300; at++) sender.publish("work", bytes(at));
            sender.flush(PATIENCE);
            until(() -> got.size() >= 300);
            saw(got.size(), new HashSet<>(got).size(), members.size());
        });
        BEHAVIOURS.put("request", () -> {
            answer(connect(), "double", number -> "" + 2 * Integer.parseInt(number));
            Connection client = connect();
            for (int at = 0; at < 100; at++) {
                String answer = text(client.request("double", bytes(at), PATIENCE));
                check(answer.equals("" + 2 * at), "another answer");
            }
            Connection old = connect(options().oldRequestStyle());
            saw("old style", text(old.request("double", bytes(21), PATIENCE)));
        });
        BEHAVIOURS.put("no-responders", () -> {
            try {
                connect(options().reportNoResponders()).request("nobody.home", null).get();
            } catch (ExecutionException error) {
                saw(error.getCause().getMessage());
            }
            saw(connect().request("nobody.home", null, PATIENCE));
        });
        BEHAVIOURS.put("request-many", () -> {
            for (int at = 0; at < 5; at++) {
                String body = "" + at;
                answer(connect(), "who", question -> body);
            }
            Connection client = connect();
            String inbox = client.createInbox();
            Subscription sub = listen(client, inbox);
            client.publish("who", inbox, null);
            List<String> got = new ArrayList<>();
            for (int at = 0; at < 5; at++) got.add(text(next(sub)));
            Collections.sort(got);
            saw(got);
        });
        BEHAVIOURS.put("headers", () -> {
            Connection nc = connect();
            Subscription sub = listen(nc, "h");
            Headers headers = new Headers().add("Trace-Id", "abc").add("Colour", "red", "green blue");
            for (String body : new String[] {"body", ""}) {
                nc.publish(NatsMessage.builder().subject("h").headers(headers).data(body).build());
                Message message = next(sub);
                saw(message.getHeaders().get("Trace-Id"), message.getHeaders().get("Colour"),
                    text(message));
            }
        });
        BEHAVIOURS.put("unsubscribe-after", () -> {
            Connection nc = connect();
            Subscription sub = listen(nc, "few");
            sub.unsubscribe(3);
            for (int at = 0; at < 10; at++) nc.publish("few", bytes(at));
            for (int at = 0; at < 3; at++) check(text(next(sub)).equals("" + at), "another message");
            nc.flush(PATIENCE);
            saw(sub.isActive(), nc.getStatistics().getInMsgs());
        });
        BEHAVIOURS.put("drain", () -> {
            Connection nc = connect(), other = connect();
            Queue<String> got = new ConcurrentLinkedQueue<>();
            nc.createDispatcher(message -> {
                Thread.sleep(1);
                got.add("x");
            }).subscribe("flood");
            nc.flush(PATIENCE);
            for (int at = 0; at < 200; at++) other.publish("flood", null);
            other.flush(PATIENCE);
            nc.flush(PATIENCE);
            saw("drained", nc.drain(PATIENCE).get(), got.size(), nc.getStatus());
        });
        BEHAVIOURS.put("max-payload", () -> {
            Connection nc = connect();
            Subscription sub = listen(nc, "big");
            int most = (int) nc.getMaxPayload();
            nc.publish("big", new byte[most]);
            check(next(sub).getData().length == most, "cut");
            try {
                nc.publish("big", new byte[most + 1]);
            } catch (IllegalArgumentException error) {
                saw(error.getMessage());
            }
            works(nc);
        });
        BEHAVIOURS.put("permissions", () -> {
            Connection nc = connect(options().userInfo("u", "p"));
            nc.publish("secret", null);
            nc.subscribe("secret");
            nc.flush(PATIENCE);
            for (String what : new String[] {"publish", "subscription"}) {
                until(() -> told("permissions violation for " + what + " to"));
                saw(what, nc.getStatus());
            }
            works(nc, "open.x");
        });
        BEHAVIOURS.put("max-subscriptions", () -> {
            Connection nc = connect(options().noReconnect());
            for (String subject : new String[] {"a", "b", "c"}) nc.subscribe(subject);
            until(() -> told("maximum subscriptions exceeded"));
            saw("told");
        });
        BEHAVIOURS.put("max-connections", () -> {
            Connection first = connect();
            // The text may be lost with nats-server, which closes over what the client sent.
            refused(options());
            saw("refused");
            works(first);
        });
        BEHAVIOURS.put("auth-password", () -> works(connect(options().userInfo("ann", "secret"))));
        BEHAVIOURS.put("auth-token",
            () -> works(connect(options().token("t0ken".toCharArray()))));
        BEHAVIOURS.put("auth-nkey", () -> {
            warmUp();
            char[] seed = Files.readString(Path.of(DIR, "user.nk")).toCharArray();
            works(connect(options().authHandler(Nats.staticCredentials(null, seed))));
        });
        BEHAVIOURS.put("auth-jwt", () -> {
            warmUp();
            works(connect(options().authHandler(Nats.credentials(DIR + "/user.creds"))));
        });
        BEHAVIOURS.put("auth-wrong", () -> saw(refused(options().userInfo("ann", "wrong"))));
        BEHAVIOURS.put("tls", () -> works(connect(tls(false))));
        BEHAVIOURS.put("tls-first", () -> works(connect(tls(false).tlsFirst())));
        BEHAVIOURS.put("tls-certificate", () -> {
            works(connect(tls(true)));
            refused(tls(false));
            saw("refused without one");
        });
        BEHAVIOURS.put("websocket", () -> {
            Connection nc = connect(options().server(System.getenv("WS_URL")));
            works(nc);
            Subscription sub = listen(nc, "big");
            nc.publish("big", new byte[100_000]);
            saw(next(sub).getData().length);
        });
        BEHAVIOURS.put("reconnect", () -> {
            Connection nc = connect();
            Subscription sub = listen(nc, "after");
            ask("stop");
            until(() -> told("DISCONNECTED"));
            nc.publish("after", bytes("buffered"));
            ask("start");
            until(() -> told("RESUBSCRIBED"));
            saw(text(next(sub)), told("RECONNECTED"));
            works(nc);
        });
        BEHAVIOURS.put("closed", () -> {
            Connection nc = connect(options().noReconnect());
            nc.flush(PATIENCE);
            ask("stop");
            until(() -> told("CLOSED"));
            saw(nc.getStatus());
        });
        BEHAVIOURS.put("lame-duck", () -> {
            connect().flush(PATIENCE);
            ask("lame-duck");
            until(() -> told("LAME_DUCK"));
            saw("told");
        });
        BEHAVIOURS.put("slow-consumer", () -> {
            Connection nc = connect();
            Subscription sub = listen(nc, "fast");
            sub.setPendingLimits(10, 1 << 20);
            for (int at = 0; at < 100; at++) nc.publish("fast", null);
            nc.flush(PATIENCE);
            until(() -> told("slow consumer"));
            saw("told");
            works(nc);
        });
        BEHAVIOURS.put("discovered-servers", () -> {
            Connection nc = connect();
            until(() -> nc.getServerInfo().getConnectURLs().size() >= 2);
            ask("stop");
            until(() -> told("RESUBSCRIBED"));
            works(nc);
            saw("went on at the other");
        });
        BEHAVIOURS.put("jetstream", () -> {
            try {
                connect().jetStreamManagement().getAccountStatistics();
            } catch (Exception error) {
                saw(error.getMessage());
            }
        });
    }

    public static void main(String[] words) throws Exception {
        Behaviour behaviour = BEHAVIOURS.get(words[0]);
        if (behaviour == null) System.exit(77);
        behaviour.run();
        System.exit(0);
    }
}
