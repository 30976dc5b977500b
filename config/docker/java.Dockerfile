FROM eclipse-temurin:21-jdk AS build
WORKDIR /src
COPY App.java ./
RUN javac App.java

FROM eclipse-temurin:21-jre
COPY --from=roundsman /roundsman /usr/local/bin/roundsman
WORKDIR /app
COPY --from=build /src/*.class ./
USER 1000:1000
HEALTHCHECK --start-period=30s CMD ["roundsman", "health"]
# Each process needs its share of the memory: a JVM counts on all of the container's.
ENTRYPOINT ["roundsman", "-i", "2", "-l", "8080", "--"]
CMD ["java", "-XX:MaxRAMPercentage=35", "App"]
