// Sends one JSON body to a server and prints the digit; asks again when it is told to.  Needs Java 17 alone.
//   java Predict.java models/digits/sample.json [http://127.0.0.1:8080]

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Path;
import java.time.Duration;
import java.util.regex.Pattern;

public class Predict {
    static final int TRIES = 5;

    // nginx takes HTTP/1.1; an upgrade need not be asked for
    static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    static String predict(Path sample, String url) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(url + "/predict"))
            .header("Content-Type", "application/json")
            .timeout(Duration.ofSeconds(30))
            .POST(BodyPublishers.ofFile(sample))
            .build();
        for (int left = TRIES - 1; ; left--) {
            HttpResponse<String> answer = CLIENT.send(request, BodyHandlers.ofString());
            if (answer.statusCode() == 200) {
                return answer.body();
            }
            if (answer.statusCode() != 503 || left == 0) {
                throw new IllegalStateException(answer.statusCode() + " " + answer.body());
            }
            Thread.sleep(1000 * answer.headers().firstValueAsLong("Retry-After").orElse(1));
        }
    }

    public static void main(String[] arguments) throws Exception {
        String url = arguments.length > 1 ? arguments[1] : "http://127.0.0.1:8080";
        String answer = predict(Path.of(arguments[0]), url);
        // a program of yours has a JSON library; the JDK has none
        var digit = Pattern.compile("\"digit\":([0-9]+)").matcher(answer);
        if (!digit.find()) {
            throw new IllegalStateException("no digit in " + answer);
        }
        System.out.println(digit.group(1));
    }
}
