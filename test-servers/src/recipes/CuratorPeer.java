import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.retry.ExponentialBackoffRetry;

/** Takes and gives back Curator's InterProcessMutex for whoever asks over TCP; each connection is a client with a session of its own. */
public class CuratorPeer {
    public static void main(String[] args) throws Exception {
        ServerSocket listener = new ServerSocket(Integer.parseInt(args[1]), 50, InetAddress.getByName(args[0]));
        while (true) {
            Socket socket = listener.accept();
            Thread thread = new Thread(() -> serve(socket, args[2]));
            thread.setDaemon(true);
            thread.start();
        }
    }

    private static void serve(Socket socket, String hosts) {
        CuratorFramework client = null;
        // A mutex belongs to the thread that took it, and this thread to the connection.
        Map<String, InterProcessMutex> mutexes = new HashMap<>();
        try (socket) {
            BufferedReader in = new BufferedReader(new InputStreamReader(socket.getInputStream(), "UTF-8"));
            PrintStream out = new PrintStream(socket.getOutputStream(), true, "UTF-8");
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                String[] words = line.split(" ", 2);
                if (words[0].equals("hello")) {
                    out.print("ready\n");
                    out.flush();
                    continue;
                }
                if (client == null) {
                    client = CuratorFrameworkFactory.newClient(hosts, 10000, 5000, new ExponentialBackoffRetry(50, 5));
                    client.start();
                }
                CuratorFramework own = client;
                InterProcessMutex mutex = mutexes.computeIfAbsent(words[1], path -> new InterProcessMutex(own, path));
                String answer;
                if (words[0].equals("unlock")) {
                    mutex.release();
                    answer = "free";
                } else if (words[0].equals("try")) {
                    answer = mutex.acquire(0, TimeUnit.SECONDS) ? "held" : "busy";
                } else {
                    mutex.acquire();
                    answer = "held";
                }
                out.print(answer + "\n");
                out.flush();
            }
        } catch (Exception error) {
            error.printStackTrace();
        } finally {
            if (client != null) {
                client.close();
            }
        }
    }
}
